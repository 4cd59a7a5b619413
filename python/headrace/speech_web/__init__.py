"""Speech recognition over plain HTTP: OpenAI's transcriptions, and a page that hears the
microphone."""

from headrace.speech_web.routes import SpeechRoutes

__all__ = ["SpeechRoutes"]
