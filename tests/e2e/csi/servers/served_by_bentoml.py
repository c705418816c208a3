"""A service of BentoML that takes its model from a directory, as daemonset/examples/bentoml.yaml has it."""

import os

import bentoml
from weights import Weights


@bentoml.service
class Product:
    def __init__(self):
        self.weights = Weights(os.environ["MODEL_DIR"])

    @bentoml.api
    def multiply(self, x: list[float]) -> dict:
        return self.weights.answer(x)
