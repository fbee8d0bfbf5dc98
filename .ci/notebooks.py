"""Run a command that ends in `nbdev_test --do_print`, and count the notebooks, which it does not.

    python .ci/notebooks.py COMMAND [ARGUMENT..]

The command's output passes through. Then come a table of every notebook under nbs/ with its
seconds and, alone on a line, `N passed, N failed`. A notebook that did not run to its end has
failed. Exit code 0 only if the command's is 0 and none failed. The command is ended after
NB_LIMIT seconds (default 1800), since nbdev_test waits for a cell without end.

The command is a line of README.md that makes the environment itself. So nothing here needs a
package: what each notebook did is read from what nbdev_test prints (nbdev.test.test_nb would tell
it, but is not what the line runs), and directives are read without nbdev.
"""
import configparser, json, os, re, signal, subprocess, sys, threading, time
from itertools import takewhile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
settings = configparser.ConfigParser(delimiters=['='])
settings.read(root/'settings.ini', encoding='utf-8')
skip_flags = set(settings['DEFAULT']['tst_flags'].split())
limit = float(os.environ.get('NB_LIMIT', 1800))
directive = re.compile(r'\s*#\s*\|\s*(\w+)\s*:?\s*(\S*)')
# The last one heads a traceback: `AssertionError in PATH:`
event = re.compile(r'(Starting|- Completed|\w+ in) (.+?\.ipynb)')


def notebooks():
    "All notebooks that nbdev_test has to find, in its order."
    paths = (p.relative_to(root) for p in sorted((root/'nbs').rglob('*.ipynb')))
    return [p for p in paths if not any(part[0] in '._' for part in p.parts)]


def cells_to_run(path):
    "How many code cells nbdev_test runs in a notebook: none with a skipped flag or `eval: false`."
    cells = json.loads((root/path).read_text('utf-8'))['cells']
    def sources(kind): return [''.join(c['source']) for c in cells if c['cell_type'] == kind]
    if any(re.search(r'^skip_exec:\s*true', s, re.M) for s in sources('raw')): return 0
    return sum(runs(s) for s in sources('code'))


def runs(source):
    "Does nbdev_test run this cell?"
    heads = takewhile(bool, map(directive.match, source.strip().splitlines()))
    found = dict(m.groups() for m in heads)
    return bool(source.strip()) and not skip_flags & found.keys() and found.get('eval') != 'false'


def watch(command):
    "Run `command`, pass on its output; its exit code, and when each notebook began, ended, raised."
    times, lock = {}, threading.Lock()
    def pump(source, target):
        for line in source:
            print(line, end='', file=target, flush=True)
            for what, name in event.findall(line):
                path, now = Path(name), time.monotonic()
                if path.is_absolute() and path.is_relative_to(root):
                    with lock: times.setdefault(path.relative_to(root), {})[what.split()[-1]] = now
    proc = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, encoding='utf-8', errors='replace',
                            env=os.environ | {'PYTHONUNBUFFERED': '1'},
                            start_new_session=os.name != 'nt')
    pumps = [threading.Thread(target=pump, args=a, daemon=True)
             for a in ((proc.stdout, sys.stdout), (proc.stderr, sys.stderr))]
    for p in pumps: p.start()
    try: rc = proc.wait(limit)
    except subprocess.TimeoutExpired:
        print(f'\nNot finished after {limit:.0f} s: ended.', file=sys.stderr)
        proc.kill() if os.name == 'nt' else os.killpg(proc.pid, signal.SIGKILL)
        rc = proc.wait()
    for p in pumps: p.join(10)  # a child that outlives the command must not hold us up
    return rc, times


def verdict(seen, n_cells):
    "What became of a notebook, and its seconds."
    if not n_cells: return 'nothing to run', 0.
    if 'Starting' not in seen: return 'NOT RUN', 0.
    if 'Completed' not in seen: return 'NOT FINISHED', time.monotonic() - seen['Starting']
    return 'FAILED' if 'in' in seen else 'passed', seen['Completed'] - seen['Starting']


def main(command):
    "Run, print the table and the count, return the exit code."
    start = time.monotonic()
    rc, times = watch(command)
    rows = [(p, n, *verdict(times.get(p, {}), n)) for p in notebooks() for n in [cells_to_run(p)]]
    width = max((len(str(r[0])) for r in rows), default=8)
    print(f"\n{'notebook':{width}}  cells  seconds")
    for path, n, what, seconds in rows:
        print(f'{path.as_posix():{width}}  {n:5}  {seconds:7.1f}  {what}')
    n_cells, seconds = sum(r[1] for r in rows), time.monotonic() - start
    print(f"{'all, with installation':{width}}  {n_cells:5}  {seconds:7.1f}")
    n_passed = sum(r[2] == 'passed' for r in rows)
    n_failed = sum(r[2] not in ('passed', 'nothing to run') for r in rows)
    if rc: print(f'The command ended with exit code {rc}.')
    if not n_passed: print('No notebook passed.')
    print(f'\n{n_passed} passed, {n_failed} failed')
    return int(rc != 0 or n_failed > 0 or n_passed == 0)


if __name__ == '__main__':
    if len(sys.argv) < 2: sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
