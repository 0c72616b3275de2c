"""One federation on one machine, trained, killed if asked, verified and reported."""
