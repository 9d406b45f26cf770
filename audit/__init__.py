"""Does a dataset hold plurality, and would we have seen it: three tests and a verdict.

answers.py     what people answered, each pair in one orientation, users who are one counted once
features.py    what is judged, as features
overlap.py     test A: do users agree with each other in ways that one taste cannot explain
design.py      who answered which rows, and the sums that models are made of
model.py       the consensus and the plural model, for many vectors of labels at once
descent.py     their fit
cross_fit.py   test B's statistic: what the plural model gains on answers that it has not seen
nulls.py       answers as one taste would give them, and users exchanged
power.py       test C: other tastes are planted, which share is found
groups.py      who is alike, and what they disagree about
verdict.py     plural, none seen, cannot tell
listing.py     which things a page shows
thumbnails.py  small copies of those that are images
page.py        audit.md

audits/<name>/plan.json       AuditPlan: what it was made from
audits/<name>/draws.parquet   the statistic of every draw; while it runs, and if it is killed, in
                              audits/.<name>.draws.unfinished, where the next one goes on
audits/<name>/audit.json      AuditRecord: what ``pal audit --json`` prints, and more
audits/<name>/audit.md        the same for people, with users.png and null.png, and thing-*.jpg
                              where images are judged
"""
