"""The `anabranch` command: jobs, silos and the demo, for the people who run a federation and those who use it."""
