"""inpaint-data completion: the script with which a shell completes commands, flags and choices.

The script has all names in it, so that a completion starts no Python.
"""

import shlex
from typing import Literal

from inpaint_data.commands.main import COMMANDS, reader_of
from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.settings import CONFIG, FOR, Setting

_BASH = """\
_inpaint_data() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} choices=
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "COMMANDS --help --version" -- "$word"))
        return
    fi
    if [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
    if [[ $word == = ]]; then before=${COMP_WORDS[COMP_CWORD-1]} word=; fi
    case $command in
CASES
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$flags --help" -- "$word"))
    elif [[ $choices ]]; then
        COMPREPLY=($(compgen -W "$choices" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}
complete -o filenames -F _inpaint_data inpaint-data
"""

_ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
autoload -Uz bashcompinit && bashcompinit
"""


def run(shell: Literal["bash", "zsh", "fish"]) -> Outcome:
    """Print a completion script.

    Args:
        shell: bash or zsh, for `source <(inpaint-data completion bash)` in ~/.bashrc or ~/.zshrc; or fish, for
            `inpaint-data completion fish | source` in its config
    """
    if shell == "fish":
        return Outcome(_fish())
    return Outcome(_bash() if shell == "bash" else _ZSH + _bash())


def settings_of(command: str) -> tuple[list[Setting], tuple[str, ...]]:
    """The settings of a command that have a flag, and the choices of its first word where it has one without."""
    reader = reader_of(command)
    flags = [setting for setting in reader.settings if setting.name not in reader.positional]
    first = [setting.choices for setting in reader.settings if setting.name in reader.positional]
    return [*flags, CONFIG, *([FOR] if reader.takes_model else [])], first[0] if first else ()


def _bash() -> str:
    cases = []
    for command in COMMANDS:
        settings, first = settings_of(command)
        cases.append(f"    {command})")
        cases.append(f"        local flags={shlex.quote(' '.join(f'--{setting.name}' for setting in settings))}")
        cases.append("        case $before in")
        for setting in settings:
            if setting.choices:
                cases.append(f"        --{setting.name}) choices={shlex.quote(' '.join(setting.choices))} ;;")
        if first:
            cases.append(f"        {command}) choices={shlex.quote(' '.join(first))} ;;")
        cases.append("        esac ;;")
    return _BASH.replace("COMMANDS", " ".join(COMMANDS)).replace("CASES", "\n".join(cases))


def _fish() -> str:
    lines = ["complete -c inpaint-data -n __fish_use_subcommand -l version -d 'Print the version'"]
    for command, about in COMMANDS.items():
        lines.append(f"complete -c inpaint-data -f -n __fish_use_subcommand -a {command} -d {shlex.quote(about.text)}")
        settings, first = settings_of(command)
        seen = f"complete -c inpaint-data -n '__fish_seen_subcommand_from {command}'"
        for setting in settings:
            text = shlex.quote(setting.text.partition(". ")[0])
            values = f" -x -a {shlex.quote(' '.join(setting.choices))}" if setting.choices else " -r"
            lines.append(f"{seen} -l {setting.name} -d {text}{'' if setting.is_switch else values}")
        if first:
            lines.append(f"{seen} -f -a {shlex.quote(' '.join(first))}")
    return "\n".join(lines)
