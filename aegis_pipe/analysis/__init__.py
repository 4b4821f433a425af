"""What can be reckoned about a run, before it or after it: pure functions over values.

quantiles.py      bounds on a quantile from samples, with no assumption about the distribution
profile.py        measured execution times, their fingerprint, and their file
task_set.py       what is promised and what it costs: tasks, policies as orders
response_time.py  response-time bounds of a task set
certificate.py    the proof or refusal of a task set, and the smallest change that would pass
random_task_sets.py   sets to try all this on
simulation.py     runs of the real scheduler on virtual time
replay.py         a recorded run, decided again
blame.py          where a request's time went
"""
