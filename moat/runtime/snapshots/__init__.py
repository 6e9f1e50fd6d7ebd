"""Snapshots: point-in-time copies of a workspace, and the way back.

    entry      one thing in a tree: file, directory, symbolic link, or something that cannot be kept
    tree       every entry of a snapshot, in walking order
    object     the content of a file, named by its SHA-256
    store      the objects, trees and snapshots of one workspace, shared by all of its runs
    snapshot   a tree with its reason: which run, when, why

Nothing in a workspace is ever trusted: it is read relative to open directories, links are not followed,
no program of the workspace (git with its hooks and filters among them) is started on the host.
"""
