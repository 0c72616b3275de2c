import signal

import server  # noqa: F401 - before any test imports grpc: it switches TLS 1.2 off for this process

# Started in the background of a script the tests ignore Ctrl-C, and so would the programs they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
