from tests.helpers import declare_torchvision  # noqa: F401  before any client imports torchvision, in spawned processes too
