"""The job's task at a silo that plays a slow machine: `seconds_per_batch` in the params of its data binding."""

import time

from task import Pictures


class Slow:
    def __init__(self, **params: int | float) -> None:
        self.task, self.pause = Pictures(**params), 0.0

    def model(self):
        return self.task.model()

    def inputs(self):
        return self.task.inputs()

    def dataset(self, data, split):
        self.pause = float(data.params.get("seconds_per_batch", 0.0))
        return self.task.dataset(data, split)

    def loss(self, model, batch):
        time.sleep(self.pause)
        return self.task.loss(model, batch)

    def evaluate(self, model, batches):
        return self.task.evaluate(model, batches)
