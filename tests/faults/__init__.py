"""Run a fault server: a proxy on a real socket that breaks what passes, as a script of steps says.

script.py    which request meets which fault
messages.py  HTTP/1.1 as it is on the wire
answers.py   what each fault does to an answer
server.py    the sockets: connections, outages, what was met and asked

    with faulty(demo.url, "- {match: GET .*/files/, fault: cut, after: 1000, times: 1}") as server:
        ...  # clients use server.url
"""

from tests.faults.script import Step
from tests.faults.server import Asked, Faulty, Met, faulty

__all__ = ["Asked", "Faulty", "Met", "Step", "faulty"]
