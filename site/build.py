"""Build the site in _site/html: the notebooks as they are stored, and a page for each module.

    python site/build.py               build, and check every link, anchor and picture within the site
    python site/build.py linkcheck     ask for every address outside it (needs the network)
"""
import ast, configparser, html, importlib, inspect, os, re, shutil, subprocess, sys, textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
from fastcore.docments import docments

here = Path(__file__).resolve().parent
root, nbs = here.parent, here.parent/'nbs'
staged, built = root/'_site'/'source', root/'_site'/'html'
ini = configparser.ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
blob = f"{cfg['git_url']}/blob/{cfg['branch']}"
appendices = 'small_world config rows blocks checkpoint trunk artifacts batching share finetune chat choices asking verdicts judge_study oracle autopsy full_run speed scale pages'.split()
directive = re.compile(r'^#\s*\|\s*(\w+).*\n?', re.M)
link = re.compile(r'(\]\()(?!\w+:|#)([^)\s]+)')
view, state = ('application/vnd.jupyter.widget-' + kind for kind in ('view+json', 'state+json'))


# A notebook, as a reader sees it
def outward(text, folder):
    "Links in `text` to files that are no page of the site, turned into addresses on GitHub."
    def change(m):
        path, _, anchor = m[2].partition('#')
        target = (folder/path).resolve()
        if target.is_relative_to(nbs) and target.suffix in ('.ipynb', '.png', '.svg'): return m[0]
        return f'{m[1]}{blob}/{target.relative_to(root).as_posix()}' + (f'#{anchor}' if anchor else '')
    return link.sub(change, text)


def control(s):
    "A widget that holds one value, as an HTML control that cannot be moved."
    kind, value, name = s['_model_name'], s.get('value'), html.escape(s.get('description') or '')
    text = lambda x: html.escape(str(x))
    if kind == 'HTMLModel': return value
    if kind == 'LabelModel': return f'<p>{text(value)}</p>'
    if kind == 'ButtonModel': return f"<button disabled>{name or text(s.get('icon'))}</button>"
    if kind == 'CheckboxModel': return f"<label><input type=checkbox disabled {'checked' if value else ''}> {name}</label>"
    if '_options_labels' in s: value = (s['_options_labels'] or [''])[s['index'] or 0]
    if 'Slider' not in kind: return f'<label>{name} <input disabled value="{text(value)}"></label>'
    low, high = (0, len(s['_options_labels']) - 1) if '_options_labels' in s else (s['min'], s['max'])
    at = s['index'] if '_options_labels' in s else value
    return (f'<label>{name} <input type=range disabled step=any min={low} max={high} value={at}></label> '
            f"<output>{text(round(value, 4) if isinstance(value, float) else value)}</output>")


def shown(output, alt):
    "An output inside a widget, as HTML."
    data = output.get('data', {})
    if 'image/png' in data:
        alt = output.get('metadata', {}).get('image/png', {}).get('alt', alt)
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data["image/png"].strip()}">'
    return data.get('text/html') or f"<pre>{html.escape(output.get('text') or data.get('text/plain', ''))}</pre>"


def widget(models, id):
    "A widget's stored state as HTML that needs no script: its controls, and the picture they have drawn."
    s = models[id.removeprefix('IPY_MODEL_')]['state']
    if 'children' in s: return '<div>' + ''.join(widget(models, c) for c in s['children']) + '</div>'
    if 'outputs' in s: return ''.join(shown(o, 'What the controls above draw, as they are set here') for o in s['outputs'])
    return f'<div>{control(s)}</div>'


def picture_text(cell, where):
    "Hand the alt text of a cell's pictures to the page; a picture without one is an error."
    alts = {o.metadata.get('image/png', {}).get('alt') for o in cell.outputs if 'image/png' in o.get('data', {})}
    if len(alts) > 1 or not all(alts): raise ValueError(f'{where}: pictures need one alt text a cell, found {alts}')
    if alts: cell.metadata['mystnb'] = {'image': {'alt': alts.pop()}}


def code_cell(cell, models, where):
    "A code cell without directives, its widgets as they stand; None for one that no reader sees."
    if 'hide' in directive.findall(cell.source): return
    cell.source = directive.sub('', cell.source).strip('\n')
    for o in cell.outputs:
        if view not in o.get('data', {}): continue
        if o.data[view]['model_id'] not in models: raise ValueError(f'{where}: a widget whose state is not stored')
        drawn = widget(models, o.data[view]['model_id'])
        o.data = {'text/html': f'<div class="widget">{drawn}<p>It can be moved where the notebook runs.</p></div>'}
    for o in cell.outputs:  # Sphinx resolves no links in what a cell prints
        if text := o.get('data', {}).get('text/markdown'): o.data['text/markdown'] = re.sub(r'(\]\((?!\w+:)[^)]+)\.ipynb', r'\1.html', text)
    picture_text(cell, where)
    return cell if cell.source or cell.outputs else None


def start(path):
    "How to run a notebook oneself: the cell under its first screen."
    place = path.relative_to(root)
    return nbformat.v4.new_markdown_cell(textwrap.dedent(f"""\
        [Open in Colab](https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{place.as_posix()})
        · [on GitHub]({blob}/{place.as_posix()})

        <details><summary>In Colab, run this in a cell of its own first</summary>

        ```
        !git clone -q {cfg['git_url']}
        %cd {cfg['repo']}/{place.parent.as_posix()}
        %pip install -q {'../' * (len(place.parts) - 1)}
        ```

        The package is not on a package index yet; this takes it, with the files that the lessons read, from GitHub.
        Restart the session if Colab asks for it, and run the second line again.
        </details>"""))


def stage(path, extra=()):
    "Write a notebook to where Sphinx reads it, without what only nbdev and Jupyter need; `extra` cells go to the end."
    nb, name = nbformat.read(path, 4), path.relative_to(root).as_posix()
    models = nb.metadata.get('widgets', {}).get(state, {}).get('state', {})
    cells = [code_cell(c, models, f'{name}, cell {i}') if c.cell_type == 'code' else c for i, c in enumerate(nb.cells)]
    cells = [c for c in cells if c]
    for c in cells:
        if c.cell_type == 'markdown': c.source = outward(c.source, path.parent)
    if path.stem != 'index': cells.insert(1, start(path))
    nb.cells = cells + [nbformat.v4.new_markdown_cell(x) for x in extra]
    nb.metadata.pop('widgets', None)
    nbformat.write(nb, made(staged/path.relative_to(nbs)))


def made(path):
    "`path`, its folder there."
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# A module's page
def plain(text):
    "A docstring or comment as Markdown that shows its < and * as they are."
    return re.sub(r'`[^`]*`|[<*]', lambda m: m[0] if m[0][0] == '`' else '\\' + m[0], text or '')


def parameters(thing):
    "The table of a function's parameters, from the comments beside them."
    found = {k: v for k, v in docments(thing, full=True).items() if k != 'self' and v.docment}
    rows = [f"| {'*returns*' if k == 'return' else f'`{k}`'} | {plain(' '.join(v.docment.split()))} |".replace('||', '\\|\\|')
            for k, v in found.items()]
    return '\n'.join(['| parameter | what it is |', '|---|---|', *rows]) if rows else ''


def entry(name, thing, kind='function'):
    "A function, a class with its methods, or a value, as a directive of Sphinx."
    if not callable(thing): return f'````{{py:data}} {name}\n````\n'
    lines, first = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(inspect.unwrap(thing))).resolve().relative_to(root).as_posix()
    source = f'[source]({blob}/{file}#L{first}-L{first + len(lines) - 1})'
    node = ast.parse(textwrap.dedent(''.join(lines))).body[0]
    inner = [entry(f'{name}.{k}', getattr(thing, k), 'method') for k, v in vars(thing).items()
             if k[0] != '_' and inspect.isfunction(getattr(thing, k)) and v.__doc__] if inspect.isclass(thing) else []
    args = '' if inspect.isclass(thing) else f'({ast.unparse(node.args)})'.replace('(self, ', '(').replace('(self)', '()')
    if inspect.isclass(thing): kind = 'class'
    fence = '`' * (6 if inner else 5)
    body = '\n\n'.join(filter(None, [plain(inspect.getdoc(thing)), parameters(thing), source, *inner]))
    return f'{fence}{{py:{kind}}} {name}{args}\n\n{body}\n{fence}\n'


def api_page(path):
    "The page of one module: what it exports, in its order."
    module = importlib.import_module(f'{cfg["lib_path"]}.{path.stem}')
    notebook = re.search(r'File to edit: \.\./nbs/(\S+)\.ipynb', path.read_text('utf-8'))[1]
    names = [n for n in module.__all__ if n[0] != '_']
    head = f'# {path.stem}\n\n> {plain(inspect.getdoc(module))}\n\nExplained and tested in [{notebook}](../{notebook}.ipynb).\n'
    where = f'```{{py:module}} {module.__name__}\n```\n'
    made(staged/'api'/f'{path.stem}.md').write_text('\n'.join([head, where, *(entry(n, getattr(module, n)) for n in names)]), 'utf-8')


# The whole
def toctree(caption, pages): return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *pages, '```'])


def contents(path):
    "A notebook's line in the table of contents: its number and title, or what it is."
    title = nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix('# ')
    number = path.stem.partition('_')[0]
    if path.parent.name == 'solutions': title = f'Solutions to lesson {number}'
    elif number.isdigit(): title = f'{number} · {title}'
    return f"{title} <{path.relative_to(nbs).with_suffix('').as_posix()}>"


def stage_all():
    "Lay out everything that Sphinx reads."
    shutil.rmtree(staged, ignore_errors=True)
    for p in nbs.rglob('images/*.*'): shutil.copy(p, made(staged/p.relative_to(nbs)))
    place = lambda p: (appendices.index(p.stem) if p.stem in appendices else 99, p.stem)
    groups = {'Lessons': sorted(nbs.glob('0*.ipynb')), 'Appendices': sorted((nbs/'appendix').glob('*.ipynb'), key=place),
              'Solutions': sorted((nbs/'solutions').glob('*.ipynb'))}
    modules = [p for p in sorted((root/cfg['lib_path']).glob('*.py')) if p.stem[0] != '_']
    for p in modules: api_page(p)
    for p in (p for group in groups.values() for p in group): stage(p)
    trees = [toctree(k, [contents(p) for p in v]) for k, v in groups.items()]
    stage(nbs/'index.ipynb', [*trees, toctree('The package', [f'api/{p.stem}' for p in modules])])


class Page(HTMLParser):
    "What a page links to, the anchors it has, its pictures without alt text."
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.silent = [], set(), []
        self.feed(path.read_text('utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        self.links += [a[k] for k in ('href', 'src') if a.get(k)]
        if tag == 'img' and not (a.get('alt') or '').strip(): self.silent.append(a.get('src', '')[:60])


def faults():
    "Links within the site that lead nowhere, and pictures without alt text."
    pages = {p: Page(p) for p in sorted(built.rglob('*.html')) if '_static' not in p.parts}
    for p, page in pages.items():
        name = p.relative_to(built)
        for src in page.silent: yield f'{name}: a picture without alt text, {src}'
        for to in set(page.links):
            path, _, anchor = unquote(to).partition('#')
            if re.match(r'\w+:|//', path): continue
            target = (p.parent/path.partition('?')[0]).resolve() if path else p
            if not target.exists(): yield f'{name}: {to} is not there'
            elif anchor and target in pages and anchor not in pages[target].ids: yield f'{name}: {to} has no such anchor'


def main(builder='html'):
    "Stage, build, check; the exit code."
    stage_all()
    out = built if builder == 'html' else root/'_site'/builder
    rc = subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', builder, '-c', here, staged, out]).returncode
    found = list(faults()) if builder == 'html' else []
    print(*found, sep='\n', end='\n' * bool(found))
    print(f"{out.relative_to(root)}: {'not well, see above' if rc or found else 'every link, anchor and picture is well'}")
    return int(bool(rc or found))


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
