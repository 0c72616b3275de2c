"""Measurements. A package of its own name, as opacus installs one too, which would come before a folder that is none."""
