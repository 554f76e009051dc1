"""Pictures of events: stored before the event is said, bounded, the oldest go first."""

from coatstream.results.pictures.event_pictures import EventPictures, picture_id

__all__ = ["EventPictures", "picture_id"]
