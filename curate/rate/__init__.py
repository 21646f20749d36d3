"""Rating by people: campaigns, the queue, votes, consensus, agreement, the learned tier and accounts.

    ledger.py     ratings.sqlite: tables, the one writer, backup
    rubric.py     what the five tiers mean (rubrics/*.toml)
    campaign.py   which images are rated, in which order, by whom
    queue.py      leases: who is asked about which image next
    votes.py      rate, skip, undo, adjudicate: append-only events and what they change
    consensus.py  from votes to a tier, by the vote and by an ordinal model of the raters
    agreement.py  Krippendorff's alpha, weighted kappa, confusion, drift
    quality.py    these figures for one campaign
    mirror.py     tables `ratings` and `consensus` of the DuckDB index
    export.py     streamed exports and sealed releases
    fit.py        `curate fit`: the tier of every row, learned from those that people rated
    ordinal.py    the proportional-odds model that it fits
    users.py      accounts, invitations, sessions, limits, audit

Nothing here knows of HTTP; the pages are curate/web/.
"""
