"""A handler of TorchServe that lies in the directory of its model, as daemonset/examples/torchserve.yaml has it."""

import torch
from ts.torch_handler.base_handler import BaseHandler
from weights import Weights


class Product(BaseHandler):
    def initialize(self, context):
        self.weights = Weights(context.system_properties["model_dir"])
        self.model = torch.from_numpy(self.weights.matrix)
        self.initialized = True

    def handle(self, data, context):
        return [self.answer(request["body"]["x"]) for request in data]

    def answer(self, x):
        return {"type": self.weights.type, "y": (torch.tensor(x, dtype=torch.float32) @ self.model).tolist()}
