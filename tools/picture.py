"""Draw docs/live-view.svg: the live view in the middle of the embedded show."""

import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console

from apf_elastic.commands.watch import look, progress
from apf_elastic.demo import run_service
from apf_elastic.demo_embedded import EmbeddedShow
from apf_elastic.ledger import Ledger

OUT = Path(__file__).parent.parent / "docs" / "live-view.svg"


def main() -> None:
    base = Path(tempfile.mkdtemp(prefix="apf-elastic-"))
    try:
        show = EmbeddedShow(base, 60)
        show.open(Console())
        with run_service(show) as service:
            while show.progress().done < 14 and service.poll() is None:
                time.sleep(0.1)
            console = Console(record=True, width=112, highlight=False)
            with Ledger.read(show.ledger) as ledger:
                state = show.progress()
                console.print(look(ledger, progress(state.done, state.total, "tasks done")))
            OUT.write_text(console.export_svg(title="apf-elastic watch"))
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
