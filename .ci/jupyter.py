"""Open notebooks in JupyterLab as a reader does: Run All, then move every widget.

    python .ci/jupyter.py [NOTEBOOK ..]     default: the five lessons and all pages with widgets

Works on a copy of nbs/. Prints, for each, the seconds beside what the notebook promises, and what
each control changed. Exit code 1 if a cell fails, a lesson takes over three minutes, or a
widget's picture never changes. Needs `pip install jupyterlab playwright` beside `.[dev]`, and
Chromium (see browser.py); SHOTS=FOLDER keeps a picture of each widget before and after.
"""
import json, os, re, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

from browser import browser, desk, root

nbs = root/'nbs'
limit = 180
settings = {'notebook-extension/tracker': {'windowingMode': 'none'},  # all cells are in the page
            'apputils-extension/notification': {'fetchNews': 'false', 'checkForUpdates': False}}
run_all = """async () => {
  const cells = jupyterapp.shell.currentWidget.content.model.cells
  await jupyterapp.commands.execute('notebook:run-all-cells')
  const outputs = [...cells].filter(c => c.type == 'code').flatMap(c => c.outputs.toJSON())
  const errors = outputs.filter(o => o.output_type == 'error')
  return [cells.length, errors.map(o => `${o.ename}: ${o.evalue}`)]
}"""
# What a cell shows, without the controls that are moved
drawn = """e => {
  const texts = '.jp-RenderedHTMLCommon, .jp-RenderedText, .widget-html, .widget-label'
  return [...e.querySelectorAll('img')].map(i => i.src).join() +
         [...e.querySelectorAll(texts)].map(x => x.innerHTML).join()
}"""
promised = re.compile(r'to run\b.*CPU|(?:minutes?|seconds?) to run')
controls = ('.noUi-handle, .widget-dropdown select, .widget-checkbox input, .widget-button, '
            '.widget-text input')


def promise(path):
    "The sentence of a notebook's first cell that says how long it takes."
    first = json.loads(path.read_text('utf-8'))['cells'][0]
    sentences = re.split(r'(?<=[.])\s', ''.join(first['source']).replace('\n', ' '))
    return next(filter(promised.search, sentences), 'no time promised')


def has_widget(path): return 'widget-view+json' in path.read_text('utf-8')


@contextmanager
def lab():
    "JupyterLab on a copy of nbs/; its address."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        left_out = shutil.ignore_patterns('wandb', 'runs', '.*')
        shutil.copytree(nbs, Path(folder)/'nbs', ignore=left_out)
        for name, value in settings.items():
            file = Path(folder)/'settings'/'@jupyterlab'/f'{name}.jupyterlab-settings'
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        own = {'JUPYTER_CONFIG_DIR': 'config', 'JUPYTERLAB_WORKSPACES_DIR': 'workspaces',
               'JUPYTERLAB_SETTINGS_DIR': 'settings'}
        env = os.environ | {name: f'{folder}/{place}' for name, place in own.items()}
        env |= dict(WANDB_MODE='offline', HF_HUB_OFFLINE='1')
        command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root',
                   f'--port={port}', '--expose-app-in-browser', '--IdentityProvider.token=',
                   '--ServerApp.log_level=ERROR', f'--ServerApp.root_dir={folder}/nbs']
        server = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        try:
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()
            server.wait(30)


def answers(base):
    "Wait until the server answers."
    for _ in range(240):
        try: return urllib.request.urlopen(f'{base}/api')
        except OSError: time.sleep(.5)
    sys.exit('JupyterLab does not start')


def move(control, step):
    "Move one control: a step on, or for `step` 1 back again where there was none."
    tag, kind = control.evaluate('e => [e.tagName, e.type]')
    if tag == 'SELECT':
        control.select_option(index=control.evaluate('e => (e.selectedIndex + 1) % e.length'))
    elif tag == 'DIV':
        control.focus()
        for key in (['ArrowRight'], ['ArrowLeft', 'ArrowLeft'])[step]: control.press(key)
    elif kind == 'text':
        control.fill('1')
        control.press('Enter')
    else: control.click()


def changes(page, cell, control):
    "Whether moving a control changes what its cell shows, within some seconds."
    before = cell.evaluate(drawn)
    for step in (0, 1):
        move(control, step)
        for _ in range(20):
            page.wait_for_timeout(250)
            if cell.evaluate(drawn) != before: return True
    return False


def widgets(page, name):
    "Move every control of every widget; yield the widgets whose picture never changed."
    cells = page.locator('.jp-CodeCell').filter(has=page.locator(controls))
    for i in range(cells.count()):
        cell, shots = cells.nth(i), os.environ.get('SHOTS')
        found, moved = cell.locator(controls), {}
        def shot(when):
            if shots: cell.screenshot(path=f'{shots}/{Path(name).stem}_{i}_{when}.png')
        shot('before')
        for k in range(found.count()):
            control = found.nth(k)
            if control.is_enabled(): moved[k] = changes(page, cell, control)
        shot('after')
        n_moved = sum(moved.values())
        what = f'{n_moved} of {len(moved)} controls change its picture'
        print(f'    widget {i + 1}: {what}', flush=True)
        if not any(moved.values()): yield f'widget {i + 1} never changes its picture'


def read(page, base, path):
    "Open a notebook, run it, move its widgets; yield its faults."
    name = path.relative_to(nbs).as_posix()
    page.goto(f'{base}/lab/tree/{name}?reset')
    page.locator('.jp-NotebookPanel .jp-CodeCell').first.wait_for()
    kernel = 'jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel'
    page.wait_for_function(f"{kernel}?.status == 'idle'")
    start = time.monotonic()
    n_cells, errors = page.evaluate(run_all)
    seconds = time.monotonic() - start
    print(f'{name}: {n_cells} cells, {seconds:.0f} s; promised: {promise(path)}', flush=True)
    yield from errors
    if path.parent == nbs and seconds > limit: yield f'{seconds:.0f} s, over {limit} s'
    if not errors: yield from widgets(page, name)
    if has_widget(path) and not page.locator(controls).count(): yield 'it shows no widget'
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def main(paths):
    "Read the notebooks, print their faults, return the exit code."
    lessons, others = sorted(nbs.glob('0*.ipynb')), sorted(nbs.glob('[!.]*/*.ipynb'))
    paths = [Path(p).resolve() for p in paths] or [*lessons, *filter(has_widget, others)]
    n_faults = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('ended'))  # so that JupyterLab ends too
    with lab() as base, sync_playwright() as p:
        answers(base)
        page = browser(p).new_page(viewport=desk)
        page.set_default_timeout(300_000)  # a machine may be busy
        for path in paths:
            faults = list(read(page, base, path))
            for fault in faults: print(f'    FAULT {fault}', flush=True)
            n_faults += len(faults)
        page.context.browser.close()
    print(f'{len(paths)} notebooks, {n_faults} faults')
    return int(n_faults > 0)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
