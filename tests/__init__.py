# Set up before a client or a kernel is imported, in every process that the tests start.
from tests import declare_torchvision  # noqa: F401
from tests.helpers import interpreter  # noqa: F401
