from xnatfs.api.endpoint import OpenOptions as OpenOptions
from xnatfs.api.paths import DirEntry as DirEntry
from xnatfs.api.server import Server as Server
from xnatfs.api.server import open as open
from xnatfs.common.errors import ConfigError as ConfigError
from xnatfs.common.errors import LoginRequired as LoginRequired
from xnatfs.common.errors import Unreachable as Unreachable
from xnatfs.common.errors import XnatError as XnatError
from xnatfs.rest.models import Experiment as Experiment
from xnatfs.rest.models import Project as Project
from xnatfs.rest.models import Scan as Scan
from xnatfs.rest.models import Subject as Subject

__all__: list[str]
__version__: str
