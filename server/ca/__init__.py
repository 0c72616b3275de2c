"""The federation's own certificate authority: an offline root, an online issuing CA, short-lived leaves."""
