"""Make every stored output anew in one clean pass, or check that none of them has rotted.

    python .ci/outputs.py [NOTEBOOK..]            run them in order, store what they print, clean
    python .ci/outputs.py --check [NOTEBOOK..]    run them, store nothing; exit 1 where a stored
                                                  output is not what comes out today

Without names: all under nbs/. Each runs in a new kernel, in its own folder. Cells with `eval:
false` or `notest` are left as they are, so are those with `cuda` where there is no GPU, and those
with `slow` unless --slow is given.

Compared are printed text, tables, Markdown, pictures, and that widgets are there. Words and whole
numbers must be equal, other numbers close (relative, or two units of the last digit printed).
Times (`3.2 s`, `5 times as fast`) are not compared. Pictures must show the same, but for two
pixels of a font or a line. A cell may say `#| varies` (another output each time: not compared) or
`#| tolerance: 0.1`: then whole numbers need be no closer than the others, and what a picture
shows may lie that part of its height aside.
"""
import argparse, base64, difflib, hashlib, html, io, os, re, subprocess, sys, textwrap, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat, numpy as np
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.process import extract_directives
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

root = Path(__file__).resolve().parent.parent
view, state = (f'application/vnd.jupyter.widget-{kind}+json' for kind in ('view', 'state'))
# The first of these that an output has is compared
texts = ('text/markdown', 'text/html', 'text/latex', 'image/svg+xml', 'text/plain')
usual = .02  # relative, for numbers that are not whole
number = re.compile(r'(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?', re.I)
duration = re.compile(r'[\d.,]+\s*(?:µs|us|ms|s|sec|seconds?|min|minutes?|h|hours?)\b(?!/)'
                      r'|\d+:\d\d(?::\d\d)?'
                      r'|[\d.,]+\s*(?:times|x|×)\s*(?:as\s*)?(?:fast|slow|long)(?:er)?\b')
os.environ.pop('MPLBACKEND', None)  # a kernel then draws into the notebook
ansi = re.compile(r'\x1b\[[\d;]*m')


def directives(cell):
    "The directives at the head of a cell, each with the words behind it."
    return {name.strip(':'): args for name, args in extract_directives(cell, remove=False).items()}


def has_gpu():
    try: import torch
    except ImportError: return False
    return torch.cuda.is_available()


def left_out(cell, slow, gpu):
    "Is this a cell that is not run here?"
    d = directives(cell)
    if d.get('eval') == ['false'] or 'notest' in d: return True
    return ('slow' in d and not slow) or ('cuda' in d and not gpu)


def run(path, slow=False):
    "The notebook at `path` with fresh outputs; what was left out keeps its stored ones."
    nb, gpu = nbformat.read(path, 4), has_gpu()
    code = [c for c in nb.cells if c.cell_type == 'code']
    kept = {c.id: c.source for c in code if left_out(c, slow, gpu)}
    for c in code:
        if c.id in kept: c.source = ''  # nbclient passes over an empty cell
        else: c.outputs = []
    place = {'metadata': {'path': str(path.parent)}}
    NotebookClient(nb, timeout=3600, kernel_name='python3', coalesce_streams=True, resources=place,
                   extra_arguments=['--log-level=ERROR']).execute()
    for c in code:
        c.source = kept.get(c.id, c.source)
        c.outputs = [o for o in c.outputs if not is_bar(o)]
    return nb, kept.keys()


def is_bar(output):
    "Is this a progress bar? Some come only where a machine is busy."
    data = output.get('data', {})
    return view in data and bool(re.search(r'(it/s|s/it)\]$', data.get('text/plain', '')))


def widgets(nb):
    "The stored states of a notebook's widgets, by id."
    return nb.metadata.get('widgets', {}).get(state, {}).get('state', {})


def drawn(nb):
    "What the widgets of a notebook show."
    return [o for w in widgets(nb).values() for o in w['state'].get('outputs', [])]


def steady_ids(nb, name):
    "The notebook with ids of widgets and of pandas' tables that are the same at each run."
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    if not any(view in o.get('data', {}) for o in outputs):
        nb.metadata.pop('widgets', None)  # of bars that nobody sees
    text = nbformat.writes(nb)
    for i, old in enumerate(widgets(nb)):
        text = text.replace(old, hashlib.sha1(f'{name} {i}'.encode()).hexdigest()[:32])
    found = dict.fromkeys(re.findall(r'<table id=\\"(T_[0-9a-f]{5})\\"', text))
    tables = {old: f'T_{i:05x}' for i, old in enumerate(found)}
    text = re.sub(r'T_[0-9a-f]{5}', lambda m: tables.get(m[0], m[0]), text)
    return nbformat.reads(text, 4)


# What a reader sees under a cell, and whether it is the same
def shown(cell):
    "The lines of text under a cell; of what is no text, the kinds."
    parts = []
    for o in cell.outputs:
        if o.output_type == 'stream':
            if o.name == 'stdout': parts.append(o.text)
        elif o.output_type == 'error': parts.append(f'{o.ename}: {o.evalue}')
        else: parts.append(text_of(o.data) + '\n')
    text = re.sub(r' at 0x[0-9a-f]+', '', ''.join(parts))
    lines = [' '.join(duration.sub('<time>', line).split()) for line in text.splitlines()]
    return [line for line in lines if line]


def text_of(data):
    "An output as text: a page or a drawing without its tags, anything else but text as its kinds."
    if kinds := sorted(data.keys() - {*texts}): return f"[{' '.join(kinds)}]"
    kind = next((k for k in texts if k in data), None)
    if kind not in ('text/html', 'image/svg+xml'): return data.get(kind, '')
    return html.unescape(re.sub(r'<style.*?</style>|<[^>]+>', ' ', data[kind], flags=re.S))


def pictures(outputs):
    "The pictures among some outputs, each an array of height x width x 3, on white."
    coded = [o['data']['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    for image in (Image.open(io.BytesIO(base64.b64decode(c))).convert('RGBA') for c in coded):
        white = Image.new('RGBA', image.size, 'white')
        yield np.asarray(Image.alpha_composite(white, image).convert('RGB')).astype(int)


def astray(a, b, reach):
    "Where picture `a` has a colour that `b` has nowhere within `reach` pixels."
    size = (2 * reach + 1, 2 * reach + 1, 1)
    return ((a < minimum_filter(b, size) - 64) | (a > maximum_filter(b, size) + 64)).any(-1)


def same_picture(a, b, tol=0.):
    """Do two pictures show the same, as far as `tol` of the height aside?

    Measured on charts of matplotlib at 100 dpi: another hinting, font or smoothing puts at most 8 %
    of the pixels of some 12 x 12 astray; another word 19 %, a bar 3 % longer 33 %, a curve 5 %
    higher 42 %.
    """
    if a.shape != b.shape: return False
    reach = 2 + round(tol * len(a))
    other = astray(a, b, reach) | astray(b, a, reach)
    return uniform_filter(other.astype(float), 12).max() < .15


def same_pictures(old, new, tol=0.):
    "Do two lists of outputs have the same pictures?"
    old, new = list(pictures(old)), list(pictures(new))
    return len(old) == len(new) and all(same_picture(a, b, tol) for a, b in zip(old, new))


def close(a, b, tol):
    "Are two printed numbers the same? Whole ones exactly, unless the cell has its own tolerance."
    x, y = (float(s.replace(',', '')) for s in (a, b))
    whole = not re.search('[.e]', a + b, re.I)
    if whole and not tol: return x == y
    digits = min(len(s.lower().partition('e')[0].partition('.')[2]) for s in (a, b))
    last = 2 * 10.**-digits if digits and 'e' not in (a + b).lower() else 0.
    return abs(x - y) <= max((tol or usual) * max(abs(x), abs(y)), last * (1 + 1e-9))


def words(line):
    "A line with its numbers and spaces left out."
    return re.sub(r'\s', '', number.sub('#', line))


def same(old, new, tol):
    "Are two lists of lines the same, words exactly and numbers within the tolerance?"
    if len(old) != len(new): return False
    for a, b in zip(old, new):
        if words(a) != words(b): return False
        pairs = zip(number.findall(a), number.findall(b))
        if not all(close(x, y, tol) for x, y in pairs): return False
    return True


def difference(a, b):
    "How the outputs of cell `b` differ from those stored in `a`, as text; empty if they do not."
    own = float(directives(a).get('tolerance', ['0'])[0])
    old, new = shown(a), shown(b)
    if not same(old, new, own):
        lines = difflib.unified_diff(old, new, lineterm='', n=0)
        return '\n'.join([l[:160] for l in lines if not l.startswith(('---', '+++', '@@'))][:8])
    return '' if same_pictures(a.outputs, b.outputs, own) else 'another picture'


def compare(path, slow):
    "Number of cells compared, and one description for each that differs."
    stored = nbformat.read(path, 4)
    fresh, kept = run(path, slow)
    n, differing = 0, []
    for i, (a, b) in enumerate(zip(stored.cells, fresh.cells)):
        if a.cell_type != 'code' or a.id in kept or 'varies' in directives(a): continue
        if not (a.outputs or b.outputs): continue
        n += 1
        if not (found := difference(a, b)): continue
        head = a.source.strip().splitlines()[-1][:80]
        differing.append(f'[{i}] {a.id} {head}\n' + textwrap.indent(found, '    '))
    if not same_pictures(drawn(stored), drawn(fresh)):
        differing.append('a widget draws another picture')
    return n, differing


def store(path, slow):
    "Run the notebook, write it, clean it."
    nb, kept = run(path, slow)
    nbformat.write(steady_ids(nb, path.stem), path)
    clean = 'from nbdev.clean import nbdev_clean; nbdev_clean()'
    subprocess.run([sys.executable, '-c', clean, '--fname', str(path)], cwd=root, check=True)
    return sum(c.cell_type == 'code' for c in nb.cells) - len(kept), []


def work(path, args, end):
    "Compare or store one notebook, say what came of it; how many cells, and how many are wrong."
    start, name = time.monotonic(), path.relative_to(root).as_posix()
    if start > end:
        print(f'{name}: not run, the {args.budget:.0f} s are over', flush=True)
        return 0, 0
    try: n, bad = (compare if args.check else store)(path, args.slow)
    except (CellExecutionError, DeadKernelError) as e:
        n, bad = 0, [f'did not run to its end\n{ansi.sub("", str(e))[-1500:]}']
    what = f'{n} outputs compared, {len(bad)} differ' if args.check else f'{n} cells run'
    print(f'{name}: {what}, {time.monotonic() - start:.0f} s', *bad, sep='\n', flush=True)
    return n, len(bad)


def main():
    "Exit code 1 where a notebook fails or, with --check, an output differs."
    kind = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    p.add_argument('notebooks', nargs='*', type=Path)
    p.add_argument('--check', action='store_true', help='compare, store nothing')
    p.add_argument('--slow', action='store_true', help='also the cells with `slow`')
    p.add_argument('--jobs', type=int, default=1, help='notebooks at the same time')
    p.add_argument('--budget', type=float, default=float('inf'),
                   help='begin no notebook after so many seconds')
    args = p.parse_args()
    everything = [q for q in sorted((root/'nbs').rglob('*.ipynb'))
                  if not any(part[0] in '._' for part in q.relative_to(root).parts)]
    paths = [q.resolve() for q in args.notebooks] or everything
    if missing := [str(q) for q in paths if not q.is_file()]:
        p.error(f"no such notebook: {', '.join(missing)}")

    end = time.monotonic() + args.budget
    with ThreadPoolExecutor(args.jobs) as pool:
        counts = list(pool.map(lambda path: work(path, args, end), paths))
    n, n_bad = (sum(c) for c in zip(*counts))
    print(f'outputs: {n} {"compared" if args.check else "cells run"}, {n_bad} wrong')
    sys.exit(n_bad > 0)


if __name__ == '__main__': main()
