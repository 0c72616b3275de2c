"""The terms of the jobs that come: every strategy, optimizer and retention once."""

TERMS = [
    "[silos]\nmin = 2\n[aggregation]\nbuffer = 2\nmax_staleness = 3\nstaleness_exponent = 0.5\n"
    "[evaluation]\nevery = 9\n",
    "[silos]\nmin = 1\n[aggregation]\nbuffer = 1\nmax_update_norm = 100.0\nema = 0.5\n[evaluation]\nevery = 15\n"
    '[aggregation.server_optimizer]\nname = "adam"\nlr = 0.1\n'
    '[retention]\nupdates = "5m"\nsnapshots = "1m"\n',
    '[silos]\nmin = 2\n[aggregation]\nstrategy = "fedavg"\n[evaluation]\nevery = 12\n',
    '[silos]\nmin = 2\nweighting = "examples"\n[aggregation]\nbuffer = 3\nnormalise = "count"\n'
    "[evaluation]\nevery = 8\n[aggregation.server_optimizer]\nmomentum = 0.9\n"
    '[retention]\nsnapshots = "1s"\n',
    '[silos]\nmin = 1\n[aggregation]\nbuffer = 4\nmax_wait = "1m"\nmax_staleness = 0\n[evaluation]\nevery = 20\n',
    '[silos]\nmin = 1\n[aggregation]\nstrategy = "fedasync"\nstaleness_exponent = 0.3\n[evaluation]\nevery = 9\n'
    '[retention]\nsnapshots = "1s"\n',
    '[silos]\nmin = 2\n[aggregation]\nstrategy = "ca2fl"\nbuffer = 3\nmax_wait = "1m"\n[evaluation]\nevery = 12\n'
    '[aggregation.server_optimizer]\nname = "adamw"\nlr = 0.1\ndelay_threshold = 1\n',
    '[silos]\nmin = 2\n[aggregation]\nstrategy = "fedfix"\ninterval = "30s"\n[evaluation]\nevery = 10\n'
    '[retention]\nsnapshots = "1s"\n',
    '[silos]\nmin = 1\n[aggregation]\nstrategy = "fedcompass"\nlocal_steps_min = 2\nmax_wait = "1m"\n'
    '[evaluation]\nevery = 10\n[retention]\nsnapshots = "1s"\n',
    '[silos]\nmin = 1\n[aggregation]\nstrategy = "afl-dw"\ns_max = 2.0\n[evaluation]\nevery = 15\n'
    '[aggregation.server_optimizer]\nname = "yogi"\nlr = 0.1\n',
]
