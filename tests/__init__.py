# Set up before a client or a kernel is imported, in every process that the tests start.
from tests.helpers import declare_torchvision, interpreter  # noqa: F401
