"""Two jobs of different difficulty on one set of silos: how long until both have learnt enough?"""
