"""From `dependencies:` to programs: what is wanted, where it comes from, and how it gets there.

    selection   names and versions as written, read and expanded; nothing is looked up
    resolve     exact versions, remembered until `--rebuild`
    registries  which of the places that packages come from are the user's own
    npm pypi    the two registries, as the user's own clients would see them
    trees       directories with programs, verified and unpacked on the host
    staging     packages with dependencies of their own, installed there by npm and uv
    onhost      the embedded runtime's way: trees are mounted, the rest must be on the host

Everything is fetched and verified on the host, with the host's settings, tokens, proxies and CAs, so
none of them gets into an image or its history, and one download serves every image and sandbox.
"""
