"""What the server asks of whatever stands behind it: app.py, or anything else that has this."""

from typing import Protocol


class Backend(Protocol):
    """A classifier as app.py has it: a module or an object with these names."""

    WORKERS: int  # calls to process at a time, each in a thread of its own

    def init(self) -> None:
        """Load the model; called once, in a thread. Raises InvalidModel or ProviderUnavailable."""

    def inference(self, model_inputs: dict) -> dict:
        """Answer a call, in a thread. Raises InvalidInput, or Unavailable where it may work soon.

        The log shows what the answer says in `timing_ms` and of each `image`.
        """

    def status(self) -> dict:
        """Return what runs, for /healthcheck: `model`, `classes` and `version` among it."""

    def warm_up(self) -> None:
        """Raise an error where the model does not answer."""
