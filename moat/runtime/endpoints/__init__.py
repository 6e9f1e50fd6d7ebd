"""Servers in sandboxes, at `https://<endpoint>.<run>.localhost:<port>`.

    browser → gateway (one process for all runs, loopback only) → ingress of the run (a unix socket of its
    supervisor) → `Sandbox.dial` → the server in the sandbox

names, routes   what a host name means; which runs have endpoints (one file per run)
gateway, spawn  the process, and how the first run with ports starts it
server, forward one connection of a browser; one exchange with an endpoint
guard, peer     what other web sites and other users may not ask
pages           what the gateway says itself
ca, stores      the name-constrained CA, and where a user's programs learn to trust it
ingress, part   the run's side
"""
