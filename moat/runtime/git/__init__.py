"""Git on both sides of the fence.

What of a repository a sandbox may write, what it left for git on the host to obey, and worktrees.

Git runs what a repository's configuration and hooks say. So what a sandbox can write there is run by the
user's next `git status`, outside of the fence, with the user's rights.
"""
