"""What readers share whose scenes are folders: the list of scenes, the latest one's frames, the wrong name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from hilda_cache.drives.files import contained, naming_folders
from hilda_cache.drives.frame import Drive, FrameInfo
from hilda_schema.errors import DriveError, UsageError


def unknown_scene(scene: str, scenes: Iterable[str]) -> UsageError:
    """The error for a scene that a drive does not have, naming the nearest or the first ones."""
    names = sorted(scenes)
    near = get_close_matches(scene, names, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
    return UsageError(f"scene {scene!r} is not in this drive", remedy)


def check_time_order(stamps_ns: Sequence[int], path: Path) -> None:
    """Refuse time stamps that do not increase: frames would not be in time order, nor poses between them defined.

    Raises:
        DriveError: naming the file and the first stamp that is not later than the one before.
    """
    for index, (earlier, later) in enumerate(pairwise(stamps_ns), start=1):
        if later <= earlier:
            raise DriveError(f"{path}: time stamp {index} is not later than the one before", "download it again")


class FolderDrive(Drive):
    """A drive with one folder per scene; keeps the frames of the scene asked for last.

    Args:
        root: the dataset's folder.
        folders: of all scenes, anywhere below root.
        sought: what every such folder holds, for the message when there is none.

    Raises:
        DriveError: there is no scene, or two of one name.
    """

    def __init__(self, root: Path, folders: Iterable[Path], sought: str) -> None:
        self.root = root
        self.folders: dict[str, Path] = {}
        for folder in sorted(folders):
            if folder.name in self.folders:
                clash = f"{folder} and {self.folders[folder.name]} have one name"
                raise DriveError(f"two scenes {clash}", "open the folder that holds only one of them")
            self.folders[folder.name] = folder
        if not self.folders:
            raise DriveError(f"{root} holds no scene: no folder with {sought}", "give the folder of the raw dataset")
        self._latest: tuple[str, tuple[FrameInfo, ...]] = ("", ())

    def scenes(self) -> tuple[str, ...]:
        """Names of all scenes, sorted."""
        return tuple(sorted(self.folders))

    def frames(self, scene: str) -> tuple[FrameInfo, ...]:
        """The scene's frames in time order.

        Raises:
            UsageError: there is no such scene; the message names the nearest.
            DriveError: the scene's tables are damaged.
        """
        if scene not in self.folders:
            raise unknown_scene(scene, self.folders)
        if self._latest[0] != scene:
            with naming_folders():
                self._latest = (scene, self._frames(scene, self.folders[scene]))
        return self._latest[1]

    def below(self, path: Path) -> Path:
        """A path composed below root, checked not to leave it through a symbolic link."""
        return contained(self.root, path.relative_to(self.root).as_posix())

    @abstractmethod
    def _frames(self, scene: str, folder: Path) -> tuple[FrameInfo, ...]:
        """Read the scene's tables."""
