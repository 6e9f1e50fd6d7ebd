"""The `aws` grant on the host: the user's own keys, the role that they may assume, and its keys for a run."""
