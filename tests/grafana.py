"""What holds for every dashboard of ours, whatever its data source. Leaves out its queries."""


def laid_out(panels):
    """Ids once each, all within the grid of 24 columns, none over another."""
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
