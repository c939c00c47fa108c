"""LitServe as in its README, with two workers.

    make bench-peers

Started by benchmarks/bench.py.
"""

import common
import litserve


class Classifier(litserve.LitAPI):
    """One model in every worker."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.session = common.load()

    def predict(self, request: dict) -> dict:
        """Return the most probable class."""
        return common.classify(self.session, request["image"])


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(api_path="/"), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=common.PORT, generate_client_file=False)
