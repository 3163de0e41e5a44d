"""Images with captions, boxes, OCR or alt text → instructions, written by a language model or by templates."""
