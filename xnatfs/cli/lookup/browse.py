"""Run browse: the web page of a session or a project."""

import os

from xnatfs.cli.ctl.command import Context, command
from xnatfs.cli.ctl.experiments import experiment, experiment_options, session_argument, web_page
from xnatfs.cli.output import print_data

# With none of these a browser would take the terminal, or fail.
DISPLAY_VARIABLES = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")


@command("browse", "xnatctl browse -P MYPROJECT SUB001_MR1", session_argument, experiment_options)
async def browse(context: Context) -> None:
    """Open the web page of a session, a project or the server.

    Without a display, and with --quiet, its address is printed.
    """
    arguments, url = context.arguments, context.config.url
    if arguments.experiment or arguments.session_id:
        async with context.xnat() as xnat:
            document = await experiment(context, xnat)
        page = web_page(url, "experiments", document.fields["ID"])
    else:
        project = context.project(needed=False)
        page = web_page(url, "projects", project) if project else url
    if not arguments.quiet and any(map(os.environ.get, DISPLAY_VARIABLES)):
        import webbrowser  # for this command only

        context.note(f"Opening {page}")
        if webbrowser.open(page):
            return
    print_data(page)


COMMANDS = [browse]
