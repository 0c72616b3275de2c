"""Virtual-time runs of the real core: a strategy is chosen before a hospital network spends a month on it.

`scenario` says who the silos are, `chance` how long things take, `engine` what happens next, `trainers` who computes.
Decisions are those of `server.core`, arithmetic is `anabranch.rules`, training is `silo_agent.training`.
"""
