"""What the nodes' answers mean, and how it is shown: what the verbs have in common.

picture.py    the answers of all nodes as one picture: the jobs, and what each node does for them
figures.py    durations, sizes and the line of a job's progress, as people read them
events.py     what has happened between two looks at a job
table.py      columns on the screen, coloured where that is wanted
document.py   -e output=FILE
"""
