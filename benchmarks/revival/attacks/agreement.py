"""How far each teacher says what the others say: what a screen of teachers by their agreement would go by."""

import torch

from reviver.reviver import Reviver

INPUTS = 96  # made for what a teacher holds


@torch.no_grad()
def agreements(reviver: Reviver) -> dict[str, float]:
    """Silo → share of inputs of its own kinds on which it says what the mean of the others says. Leaves no trace."""
    pool, network, teachers = reviver._pool, reviver._network, list(reviver.teachers)
    state, found = pool.chance.get_state(), {}
    for one in teachers:
        labels = torch.multinomial(one.proportions, INPUTS, replacement=True, generator=pool.chance)
        inputs = pool.draw(labels)
        others = [other for other in teachers if other is not one]
        said = sum(torch.softmax(network(other.values, inputs), 1) for other in others)
        same = network(one.values, inputs).argmax(1) == torch.as_tensor(said).argmax(1)
        found[one.silo] = float(same.float().mean())
    pool.chance.set_state(state)
    return found
