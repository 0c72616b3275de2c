"""`anabranch simulate` and `anabranch compare`: what is typed, what is shown meanwhile, and the pages they leave."""
