"""The filter for a notebook that git stages: standard input to output, clean as by nbdev_clean.

`nbdev_clean --stdin` of nbdev 2.4.14 writes nothing and exits 0, which would stage an empty file.
What fails here exits 1, and git then stages the notebook as it is.
"""
import json, sys

from execnb.nbio import nb2str
from nbdev.clean import _nbdev_clean

text = sys.stdin.buffer.read().decode('utf-8')
nb = json.loads(text)
_nbdev_clean(nb)
sys.stdout.buffer.write(nb2str(nb).encode('utf-8'))
