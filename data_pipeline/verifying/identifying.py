"""Names of fields that may identify a person: in the JSON of a sample, and in the header of its image.

The names are those of the basic profile of DICOM (PS3.15, annex E), of Exif, PNG and TIFF, and what tables
usually call the same. A name says what a field is for, not what it holds. Age, sex and weight describe a
person but identify nobody alone; they are not listed.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image
from tifffile import TiffFile

from data_pipeline.decoders import npy, tiff

_PERSON = "patients?|subjects?|persons?|participants?|cases?"
_STAFF = "physicians?|doctors?|operators?|performers?|observers?|reviewers?|radiologists?|technologists?"
_KINDS = {
    "name": (
        rf"(?:{_PERSON}|{_STAFF}|first|last|given|family|sur|maiden|birth|middle|full|other|"
        r"mothers?|owner|artist|author|creator|cameraowner|institution|institutional|hospital|clinic|"
        r"department|station|site)"
        r"(?:al|s)?(?:department)?(?:name|names)|name|surname|forename|"
        rf"(?:performing|referring|requesting|reading|ordering|consulting)?(?:{_STAFF})(?:name|ofrecord)?|"
        r"owners?|artist|author|creator|copyright|xpauthor|institution|hospital|experimenter|namesofintended.*|"
        rf".*(?:patient|birth|mother|{_STAFF}|evaluator|creator|interpreter).*names?|nameof.*|orderenteredby|"
        r"responsible(?:person|organization)|roiinterpreter"
    ),
    "number": (
        rf"(?:other)?(?:{_PERSON}|{_STAFF})(?:id|ids|no|nr|num|number|identifier|code|key)|{_PERSON}|"
        r"id|pid|mrn|ssn|nhs(?:number|no)?|studyid|accession(?:number|no|id)?|admissionid|visitid|"
        r"(?:medical|health)?(?:record|insurance)(?:id|no|number|locator)?|social(?:security).*|"
        r".*patientids?.*|.*(?:serialnumber|uids?(?:infile|list|of.*)?)|imageuniqueid|deviceid|hostcomputer"
    ),
    "date": (
        r"(?!candidate|update).*(?:date|dates|datetime|timestamp|dateobs|birthday)|dateof.*|"
        r".*(?:birth|death)(?:date|time).*|dob|birth|birth(?:year|day)|"
        r"(?:study|series|acquisition|content|visit|admission|birth|(?:instance)?creation)time|"
        r"datetime(?:original|digitized)|date"
    ),
    "address": (
        r".*(?:address|street|zipcode|postcode|postalcode|telephone|telephonenumbers?|phone|phonenumber|email)|"
        r".*telecominformation|zip|city|fax|gps.*|latitude|longitude|"
        r"residence|countryofresidence|regionofresidence"
    ),
    "free text": (
        r".*(?:comment|comments|description|history|remarks?|notes?)|commentson.*|descrip|auxfile|dbname|"
        r"reason.*|impression|findings|report|xpcomment|xpsubject|xptitle|xpkeywords|usercomment|caption|title|xmp|iptc"
    ),
}
"""Patterns of whole names, by what such a field says about a person. Only the letters and digits of a name
are compared, in lower case."""
_COMPILED = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
_TAG = re.compile(r"\(?[0-9a-f]{4},? ?[0-9a-f]{4}\)?", re.IGNORECASE)
_UID = re.compile(r"(?:^|[/_])[12][._][0-9](?:[._][0-9]+){4,}")
"""A DICOM UID in a key, where dots became underscores."""
_TIFF_TAGS = {"ImageDescription", "Artist", "Copyright", "HostComputer", "DateTime", "XMP", "GPSTag"}
_OF_PROGRAMS = re.compile(r"\{\"shape\"|ImageJ=")
"""Beginnings of descriptions that programs write about the layout of the file."""
_OME_PEOPLE = re.compile(r"<(?:\w+:)?(?:Experimenter|AcquisitionDate|Description|CreationDate)\b")


def kind_of(name: str) -> str:
    """Return what a field of this name may say about a person, such as "date"; "" for nothing."""
    if _TAG.fullmatch(name):
        return "field without a name"
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((kind for kind, pattern in _COMPILED.items() if pattern.fullmatch(plain)), "")


def in_key(key: str) -> bool:
    """Return whether a key holds a DICOM UID."""
    return _UID.search(key) is not None


def in_json(value: Any) -> Iterator[str]:
    """Yield the names of identifying fields that are not empty, in mappings and lists inside each other."""
    if isinstance(value, list):
        for each in value:
            yield from in_json(each)
    if isinstance(value, dict):
        for name, inner in value.items():
            if inner not in (None, "", [], {}) and kind_of(name):
                yield name
            yield from in_json(inner)


def in_image(data: bytes) -> set[str]:
    """Return the names of identifying fields in the header of an image; pixels are not decoded.

    Raises ValueError for a header that cannot be read.
    """
    try:
        if tiff.matches(data):
            return _in_tiff(data)
        if npy.matches(data):
            return set()
        with Image.open(io.BytesIO(data)) as image:
            names = {str(name) for name, value in image.info.items() if value and kind_of(str(name))}
            exif = image.getexif()
            tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
            named = {ExifTags.TAGS.get(tag, ""): value for tag, value in tags.items()}
            names |= {name for name, value in named.items() if _filled(value) and kind_of(name)}
            names -= {"exif", "GPSInfo"}
            names |= {"GPS position"} if exif.get_ifd(ExifTags.IFD.GPSInfo) else set()
            names |= {"IPTC"} if image.info.get("photoshop") else set()
            return names
    except Exception as error:  # decoders raise nearly every kind of exception for damaged headers
        raise ValueError(f"the header cannot be read ({type(error).__name__})") from error


def _in_tiff(data: bytes) -> set[str]:
    """Return the names of identifying tags in the first directory of a TIFF."""
    with TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        found = {name: tags.valueof(name) for name in _TIFF_TAGS}
    described = found["ImageDescription"]
    if isinstance(described, str) and (_OF_PROGRAMS.match(described) or _is_harmless_ome(described)):
        del found["ImageDescription"]
    return {"GPS position" if name == "GPSTag" else name for name, value in found.items() if _filled(value)}


def _is_harmless_ome(text: str) -> bool:
    """Return whether a description is OME metadata that name no person, date or description."""
    return "<OME" in text[:2000] and not _OME_PEOPLE.search(text)


def _filled(value: Any) -> bool:
    """Return whether a field says anything."""
    return bool(value.strip("\0 ") if isinstance(value, str) else value)
