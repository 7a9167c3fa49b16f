"""The rules of docs/cache-format.md that a store can break, each in the page's own words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A sentence of the specification."""

    section: int
    text: str  # word for word, but for line breaks

    def __str__(self) -> str:
        return f'section {self.section}: "{self.text}"'


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a store breaks, where, and how."""

    rule: Rule
    file: str  # below the store
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what} ({self.rule})"


GROUPS = Rule(1, "Every `zarr.json` MUST be exactly the canonical JSON (section 2) of what this page says")
STRANGERS = Rule(1, "A part MUST hold no other file or folder than these")
LINKS = Rule(1, "links, pipes and devices MUST be refused")
CANONICAL = Rule(2, "A reader MUST refuse a file that is not in canonical form.")
SELF_CHECKSUM = Rule(
    2,
    "`manifest.json` and `seal.json` carry `self_sha256`: the sha256 of the canonical form of the object without "
    "this field.",
)
FIELDS = Rule(2, "a writer MUST write every field, and a reader MUST refuse a missing, unknown or mistyped one")
NAMES = Rule(18, "Names are of section 2's pattern before they are joined to a path; no path leaves the store.")
SOURCE = Rule(3, "model id or the like; never an absolute path")
DIGEST = Rule(3, "The recipe's **digest** names it.")
PLANNED = Rule(3, "number of parts that the whole has; when complete, the length of `parts`")
ENTRY = Rule(16, "the seal's sha256 against the manifest, then the seal as above")
TABLE = Rule(4, "One row a frame, in **reading order**")
PLAIN = Rule(4, "Columns MUST be stored plainly")
PART_ID = Rule(5, "Writers MUST derive it from everything that the part's bytes depend on")
SEAL = Rule(1, "everything that the part consists of; written last")
TIME_ORDER = Rule(6, "in the order of time (`stamp_ns` never falls), no key twice")
KEYS = Rule(6, "`drive/scene/frame`, the scene being the seal's")
DRIVE = Rule(6, "The drive of a key is the dataset's name.")
SOURCES = Rule(6, "name below the dataset's folder of every sensor file read -> sha256")
SIZES = Rule(6, "of the original images; 0 x 0 where no frame of the part has the camera")
LAYERS = Rule(6, "key `T/L`, exactly the recipe's layers: over the part (section 11)")
CHUNK_SEALS = Rule(6, "of each chunk of a shard, in order; null for a zarr.json")
ARRAYS = Rule(7, "A part has exactly these arrays:")
METADATA = Rule(7, "all chunks in one shard")
SHARD = Rule(7, "With n chunks of b bytes the file has n (b + 4) + 16 n + 4 bytes.")
PADDING = Rule(7, "The last chunk is padded with the fill value.")
OFFSETS = Rule(8, "`offset[0]` MUST be 0, differences MUST be the frame's `points` or `pairs` of the seal")
PAIRS = Rule(9, "Pairs of a frame MUST be sorted by camera, then by point, each once; a camera MUST be present")
DEPTH = Rule(9, "A pair MUST lie inside its image and have a depth above `min_depth_m`")
POSES = Rule(10, "4 x 4, row by row, metres, right-handed, last row (0, 0, 0, 1)")
INT8 = Rule(11, "`channel_mean` m and `channel_scale` s MUST be finite, s > 0")
BASIS = Rule(11, "its rows MUST be orthonormal, and its sha256 the recipe's `basis_sha256`")
PRESENT = Rule(12, "`present[f, v]` MUST be true exactly where `absent` does not name camera v.")
ABSENT = Rule(12, "Nothing absent is ever zeros.")
FINITE_POINTS = Rule(12, "`xyz_m` and `intensity` are finite.")
FORGOTTEN = Rule(14, "Writers MUST NOT add a frame whose key is in `forgotten`.")
ROOT_HASH = Rule(13, "`root_sha256` names the store's content")
DERIVED = Rule(16, "that frames.parquet, `parts` and `encoding_error` follow from the seals")
READ = Rule(16, "for each chunk that its crc32c equals the one behind it and the sealed one")
FILES = Rule(16, "on disk are exactly these, regular files of these sizes")
COMPLETE = Rule(16, "It MUST refuse a partial store unless asked for it")
VERSION = Rule(17, "A reader MUST refuse a number that it does not know before looking at anything else")
