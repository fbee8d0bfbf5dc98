"""Make every stored output anew in one clean pass, or check that none of them has rotted.

    python .ci/outputs.py [NOTEBOOK..]            run the notebooks in order, store what they print, clean them
    python .ci/outputs.py --check [NOTEBOOK..]    run them, store nothing; exit 1 where a stored output is not what comes out today

Without names: all under nbs/. Each runs in a new kernel, in its own folder. Cells with `eval: false` or `notest` are left as they
are, so are those with `cuda` where there is no GPU, and those with `slow` unless --slow is given.
Compared are printed text, tables and Markdown, and that pictures and widgets are there. Words must be equal, numbers within
the tolerance (relative, or two units of the last digit printed). Times (`3.2 s`, `5 times as fast`) are not compared. A cell may say
`#| varies` (another output each time: not compared) or `#| tolerance: 0.1`.
"""
import argparse, difflib, hashlib, html, itertools, os, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

root = Path(__file__).resolve().parent.parent
directive = re.compile(r'\s*#\s*\|\s*(\w+)\s*:?\s*(.*)')
number = re.compile(r'(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?', re.I)
duration = re.compile(r'[\d.,]+\s*(?:µs|us|ms|s|sec|seconds?|min|minutes?|h|hours?)\b(?!/)|\d+:\d\d(?::\d\d)?'
                      r'|[\d.,]+\s*(?:times|x|×)\s*(?:as\s*)?(?:fast|slow|long)(?:er)?\b')
os.environ.pop('MPLBACKEND', None)  # a kernel then draws into the notebook
ansi = re.compile(r'\x1b\[[\d;]*m')
texts = ('text/markdown', 'text/html', 'text/latex', 'text/plain')  # the first that an output has is compared


def directives(source):
    "The directives at the head of a cell."
    return dict(m.groups() for m in itertools.takewhile(bool, map(directive.match, source.strip().splitlines())))


def has_gpu():
    try: import torch
    except ImportError: return False
    return torch.cuda.is_available()


def left_out(cell, slow, gpu):
    "Is this a cell that is not run here?"
    d = directives(cell.source)
    return d.get('eval', '').strip() == 'false' or 'notest' in d or ('slow' in d and not slow) or ('cuda' in d and not gpu)


def run(path, slow=False):
    "The notebook at `path` with fresh outputs; what was left out keeps its stored ones."
    nb, gpu = nbformat.read(path, 4), has_gpu()
    code = [c for c in nb.cells if c.cell_type == 'code']
    kept = {c.id: c.source for c in code if left_out(c, slow, gpu)}
    for c in code:
        if c.id in kept: c.source = ''  # nbclient passes over an empty cell
        else: c.outputs = []
    client = NotebookClient(nb, timeout=3600, kernel_name='python3', coalesce_streams=True,
                            extra_arguments=['--log-level=ERROR'], resources={'metadata': {'path': str(path.parent)}})
    client.execute()
    for c in code: c.source = kept.get(c.id, c.source)
    return nb, kept.keys()


def steady_ids(nb, name):
    "The notebook with ids of widgets and of pandas' tables that are the same at each run."
    if not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for c in nb.cells for o in c.get('outputs', [])):
        nb.metadata.pop('widgets', None)  # of bars that nobody sees
    ids = nb.metadata.get('widgets', {}).get('application/vnd.jupyter.widget-state+json', {}).get('state', {})
    text = nbformat.writes(nb)
    for i, old in enumerate(ids): text = text.replace(old, hashlib.sha1(f'{name} {i}'.encode()).hexdigest()[:32])
    tables = {old: f'T_{i:05x}' for i, old in enumerate(dict.fromkeys(re.findall(r'<table id=\\"(T_[0-9a-f]{5})\\"', text)))}
    text = re.sub(r'T_[0-9a-f]{5}', lambda m: tables.get(m[0], m[0]), text)
    return nbformat.reads(text, 4)


def shown(cell):
    "What a reader sees under a cell: the text, and the kinds of whatever is no text."
    parts = []
    for o in cell.outputs:
        if o.output_type == 'stream':
            if o.name == 'stdout': parts.append(o.text)
        elif o.output_type == 'error': parts.append(f'{o.ename}: {o.evalue}')
        else:
            kinds = [k for k in o.data if k not in texts]
            text = next((o.data[k] for k in texts if k in o.data), '') if not kinds else f"[{' '.join(sorted(kinds))}]"
            if 'text/html' in o.data and 'text/markdown' not in o.data and not kinds:
                text = html.unescape(re.sub(r'<style.*?</style>|<[^>]+>', ' ', text, flags=re.S))
            parts.append(text + '\n')
    text = re.sub(r' at 0x[0-9a-f]+', '', ''.join(parts))
    return [' '.join(duration.sub('<time>', line).split()) for line in text.splitlines() if line.strip()]


def close(a, b, tol):
    "Are two printed numbers the same within the tolerance?"
    x, y = (float(s.replace(',', '')) for s in (a, b))
    digits = min(len(s.lower().partition('e')[0].partition('.')[2]) for s in (a, b))
    last = 2 * 10.**-digits if digits and 'e' not in (a + b).lower() else 0.
    return abs(x - y) <= max(tol * max(abs(x), abs(y)), last * (1 + 1e-9))


def same(old, new, tol):
    "Are two lists of lines the same, words exactly and numbers within the tolerance?"
    if len(old) != len(new): return False
    for a, b in zip(old, new):
        if re.sub(r'\s', '', number.sub('#', a)) != re.sub(r'\s', '', number.sub('#', b)): return False
        if not all(close(x, y, tol) for x, y in zip(number.findall(a), number.findall(b))): return False
    return True


def compare(path, slow, tol):
    "Number of cells compared, and one description for each that differs."
    stored = nbformat.read(path, 4)
    fresh, kept = run(path, slow)
    n, differing = 0, []
    for i, (a, b) in enumerate(zip(stored.cells, fresh.cells)):
        if a.cell_type != 'code' or a.id in kept: continue
        d, old, new = directives(a.source), shown(a), shown(b)
        if 'varies' in d or not (old or new): continue
        n += 1
        if same(old, new, float(d.get('tolerance') or tol)): continue
        lines = [l for l in difflib.unified_diff(old, new, lineterm='', n=0) if not l.startswith(('---', '+++', '@@'))]
        differing.append(f'[{i}] {a.source.strip().splitlines()[-1][:80]}\n' + '\n'.join('    ' + l[:160] for l in lines[:8]))
    return n, differing


def store(path, slow):
    "Run the notebook, write it, clean it."
    nb, kept = run(path, slow)
    nbformat.write(steady_ids(nb, path.stem), path)
    subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()', '--fname', str(path)],
                   cwd=root, check=True)
    return sum(c.cell_type == 'code' for c in nb.cells) - len(kept), []


def main():
    "Exit code 1 where a notebook fails or, with --check, an output differs."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='*', type=Path)
    p.add_argument('--check', action='store_true', help='compare, store nothing')
    p.add_argument('--slow', action='store_true', help='also the cells with `slow`')
    p.add_argument('--tolerance', type=float, default=.02, help='relative, for numbers')
    p.add_argument('--jobs', type=int, default=1, help='notebooks at the same time')
    p.add_argument('--budget', type=float, default=float('inf'), help='begin no notebook after so many seconds')
    args = p.parse_args()
    everything = [q for q in sorted((root/'nbs').rglob('*.ipynb'))
                  if not any(part[0] in '._' for part in q.relative_to(root).parts)]
    paths = [q.resolve() for q in args.notebooks] or everything
    if missing := [str(q) for q in paths if not q.is_file()]: p.error(f"no such notebook: {', '.join(missing)}")

    begin = time.monotonic()

    def work(path):
        start, name = time.monotonic(), path.relative_to(root).as_posix()
        if start - begin > args.budget:
            print(f'{name}: not run, the {args.budget:.0f} s are over', flush=True)
            return 0, 0
        try: n, bad = compare(path, args.slow, args.tolerance) if args.check else store(path, args.slow)
        except (CellExecutionError, DeadKernelError) as e: n, bad = 0, [f'did not run to its end\n{ansi.sub("", str(e))[-1500:]}']
        what = f'{n} outputs compared, {len(bad)} differ' if args.check else f'{n} cells run'
        print(f'{name}: {what}, {time.monotonic() - start:.0f} s', *bad, sep='\n', flush=True)
        return n, len(bad)

    with ThreadPoolExecutor(args.jobs) as pool: counts = list(pool.map(work, paths))
    n, n_bad = (sum(c) for c in zip(*counts))
    print(f'outputs: {n} {"compared" if args.check else "cells run"}, {n_bad} wrong')
    sys.exit(n_bad > 0)


if __name__ == '__main__': main()
