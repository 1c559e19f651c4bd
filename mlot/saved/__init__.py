"""Saved teachers: what is needed of one for a whole data set, computed once and read in its place.

A folder holds a manifest and files of some examples each. Writing survives interruption, reading maps the
files into memory, and neither needs torch. ``python -m mlot.saved`` saves, checks and describes them.
"""

from mlot._fingerprint import fingerprint
from mlot.saved._error import StorageError, storage_error
from mlot.saved._fingerprint import model_fingerprint
from mlot.saved._from_server import save_from_server
from mlot.saved._keys import example_key
from mlot.saved._manifest import Manifest
from mlot.saved._reader import SavedTeacher, verify_folder
from mlot.saved._teacher import save_teacher
from mlot.saved._writer import FolderLockedError, TeacherWriter

__all__ = [
    "FolderLockedError",
    "Manifest",
    "SavedTeacher",
    "StorageError",
    "TeacherWriter",
    "example_key",
    "fingerprint",
    "model_fingerprint",
    "save_from_server",
    "save_teacher",
    "storage_error",
    "verify_folder",
]
