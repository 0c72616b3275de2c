"""Pure decisions: no await, clock, disk, network or torch. What they need comes as arguments."""
