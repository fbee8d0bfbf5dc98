"Sphinx settings. site/build.py lays out what Sphinx reads; names and addresses: settings.ini."
import configparser
from pathlib import Path

_ini = configparser.ConfigParser(delimiters=['='])
_ini.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
_cfg = _ini['DEFAULT']

project, author, version, language = _cfg['title'], _cfg['author'], _cfg['version'], 'en'
copyright = _cfg['copyright']
extensions = ['myst_nb']
nb_execution_mode = 'off'  # outputs are shown as they are stored: .ci/outputs.py makes them
nb_merge_streams = True
nb_render_markdown_format = 'gfm'
myst_heading_anchors = 3
smartquotes = add_module_names = False

html_theme = 'sphinx_book_theme'
html_title = project
html_baseurl = _cfg['doc_host'] + _cfg['doc_baseurl']
templates_path = [str(Path(__file__).parent/'templates')]
html_static_path = [str(Path(__file__).parent/'static')]
html_css_files = ['site.css']
html_context = dict(default_mode='auto')
html_copy_source = html_show_sourcelink = False
html_theme_options = dict(
    repository_url=_cfg['git_url'], repository_branch=_cfg['branch'], path_to_docs=_cfg['nbs_path'],
    use_repository_button=True, use_issues_button=True, use_download_button=False,
    launch_buttons=dict(colab_url='https://colab.research.google.com'), show_toc_level=2,
    navbar_persistent=[])

# Colab and GitHub show what is pushed; a build of an unpushed state must not fail on them
linkcheck_ignore = [r'https://colab\.research\.google\.com/', _cfg['git_url']]
