"""Claude Code's plugins in a sandbox.

They are found where the user and the project name them, fetched by this machine, pinned, and shown to the
sandbox read-only, so that they work at the first prompt.

    declared   who names which plugin and marketplace, and who wins
    source     where a marketplace or a plugin is, as a value
    fetch      what was fetched, for the record
    git        one commit of a repository, fetched without running anything of it
    tree       the files of one plugin or marketplace, without links that lead out
    trees      all of them by content, shared by all runs
    lock       which commit a branch or tag was when it was last looked at
    manifest   what a marketplace and a plugin say of themselves
    resolve    all of it together: every plugin ready, or the reason why not
    deliver    the mounts and files of a sandbox
    part       all of it for a run that a program starts; `moat claude` does it before there is a run

Two kinds of names have different rights. What the *user* named (their Claude Code, `~/.moat/claude`) is
fetched as they would fetch it, with their git configuration and credentials. What the *workspace* named
may come from a stranger's repository: it is fetched without any credential, from public addresses only,
unless a grant of the run already opens that host by SSH.
"""
