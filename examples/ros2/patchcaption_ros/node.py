r"""A node that describes the detections of each image: image and detections in, captions out.

    ros2 run patchcaption_ros captions --ros-args -p bundle:=/path/to/engines/demo \
        -r image:=/camera/image_raw -r detections:=/detector/detections

Subscribes to `image` (sensor_msgs/Image) and `detections` (vision_msgs/Detection2DArray), which are matched by their
times; publishes `captions` (std_msgs/String, JSON). Images that arrive while one is being described are dropped.
"""

from __future__ import annotations

from typing import Any

from patchcaption import Captioner, PatchcaptionError
from patchcaption_ros.messages import captions_as_text, image_of, regions_of


def main() -> None:
    """Run the node; ROS is imported here and nowhere else."""
    import message_filters
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import String
    from vision_msgs.msg import Detection2DArray

    class Captions(Node):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("patchcaption")
            bundle = self.declare_parameter("bundle", "engines/demo").value
            backend = self.declare_parameter("backend", "auto").value
            self._captioner = Captioner.load(bundle, backend)
            self._publisher = self.create_publisher(String, "captions", 10)
            subscribers = [
                message_filters.Subscriber(self, Image, "image", qos_profile=qos_profile_sensor_data),
                message_filters.Subscriber(self, Detection2DArray, "detections"),
            ]
            self._matched = message_filters.ApproximateTimeSynchronizer(subscribers, queue_size=2, slop=0.05)
            self._matched.registerCallback(self._describe)
            self.get_logger().info(f"describing on {self._captioner.backend.name}")

        def _describe(self, image: Any, detections: Any) -> None:
            try:
                self._publisher.publish(String(data=describe(self._captioner, image, detections)))
            except (PatchcaptionError, ValueError) as error:
                self.get_logger().error(str(error))

    rclpy.init()
    node = Captions()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def describe(captioner: Captioner, image: Any, detections: Any) -> str:
    """Return the captions of one image's detections, as the message's text."""
    pixels = image_of(image)
    regions = regions_of(detections, (pixels.shape[1], pixels.shape[0]))
    seconds = image.header.stamp.sec + image.header.stamp.nanosec / 1e9
    captions = captioner.caption(pixels, list(regions.values()))
    return captions_as_text(dict(zip(regions, captions, strict=True)), detections, seconds)
