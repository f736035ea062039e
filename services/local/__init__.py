"""What the programs of one institution share: a socket between them, and an encrypted store each.

``service`` answers, ``link`` asks, ``vault`` keeps. All of it stays on one machine and belongs to one user; whoever
may open the socket's file may do what its program does.
"""
