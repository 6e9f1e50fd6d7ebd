"""The SSH agent of a run, and what of SSH a sandbox gets.

  messages    the agent protocol's framing and requests (RFC 9987), and what a client wants to have signed
  hostkeys    which keys a host is known by (known_hosts), and whether one of them signed something
  certificates  host keys that an authority of known_hosts vouches for
  rules       what one connection of the agent may do: pure decisions
  signing     the user's own agent, or a key file, doing what was allowed
  agent       the socket in the sandbox
  part        all of it, as a part of a run
  client      what the user's `ssh -G` says of a host (for `moat grant ssh`)

No key is ever in the sandbox. A signature is given for one thing: logging in, in a session that went through
this run's own tunnel to a granted host, which proved to be that host, with a key granted for it.
"""
