"""Files that come with the framework and that a user names: DeepSpeed settings and prompts.

They lie at the top of a checkout, where they are easily read and copied; a wheel holds them within the package.
"""

from pathlib import Path

from mllm.errors import UserError

PACKAGE = Path(__file__).parent
IN_A_CHECKOUT = {"ds_configs": "ds_configs", "prompts": "data_recipes/prompts"}
IN_A_WHEEL = "shipped"


def shipped(folder: str) -> Path:
    """The directory `ds_configs` or `prompts` of this installation."""
    inside = PACKAGE / IN_A_WHEEL / folder
    return inside if inside.is_dir() else PACKAGE.parent / IN_A_CHECKOUT[folder]


def shipped_unless_there(folder: str, own: Path, name: str) -> Path:
    """`own / name` where that is a file or directory, or else what is shipped under this name, if anything is.

    A directory `own` that isn't there is a mistake, unless it is the place of the shipped ones in a checkout.
    """
    path, other = own / name, shipped(folder) / name
    is_known = own.is_dir() or str(own) == IN_A_CHECKOUT[folder]
    return other if is_known and other.exists() and not path.exists() else path


def find_ds_config(named: str) -> Path:
    """The JSON file of a path, or of the name of a shipped one: `zero2`, or `ds_configs/zero2.json` outside a checkout.

    Raises UserError naming the choices.
    """
    path = Path(named)
    if path.is_file():
        return path
    folder = shipped("ds_configs")
    is_name = str(path.parent) in (".", IN_A_CHECKOUT["ds_configs"]) and path.suffix in ("", ".json")
    if is_name and (folder / f"{path.stem}.json").is_file():
        return folder / f"{path.stem}.json"
    names = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
    raise UserError(f"engine.ds_config {named} does not exist; write the path of a JSON file, or one of {names}")
