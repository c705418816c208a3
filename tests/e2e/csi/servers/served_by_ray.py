"""An application of Ray Serve that takes its model from a directory, as daemonset/examples/ray-serve.yaml has it."""

import time

import ray
from ray import serve
from starlette.requests import Request
from weights import Weights


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Product:
    def __init__(self, directory):
        self.weights = Weights(directory)

    async def __call__(self, request: Request):
        return self.weights.answer((await request.json())["x"])


def deploy(directory):
    """On the head: has the application run by a worker, as soon as there is one."""
    ray.init(address="auto")
    while ray.cluster_resources().get("CPU", 0) < 1:
        time.sleep(0.1)
    serve.start(http_options={"host": "0.0.0.0"}, proxy_location="EveryNode")
    serve.run(Product.bind(directory), name="llm")
    time.sleep(3600)
