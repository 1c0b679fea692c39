r"""A node that describes the detections of each image: image and detections in, captions out.

    ros2 run patchcaption_ros captions --ros-args -p bundle:=/path/to/engines/demo \
        -r image:=/camera/image_raw -r detections:=/detector/detections

Subscribes to `image` (sensor_msgs/Image, or CompressedImage with the parameter `compressed`) and `detections`
(vision_msgs/Detection2DArray), which are matched by their times; publishes `captions` (std_msgs/String, JSON). Images
that arrive while one is being described are dropped but for the newest.
"""

from __future__ import annotations

from patchcaption import Captioner
from patchcaption_ros.describing import Describer

_MATCHING = 30
"""Images that wait for their detections, which come as much later as the detector takes: a second of a camera's."""
_MAX_SECONDS_APART = 0.05


def main() -> None:
    """Run the node; ROS is imported here and nowhere else."""
    import message_filters
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import String
    from vision_msgs.msg import Detection2DArray

    class Captions(Node):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("patchcaption")
            bundle = self.declare_parameter("bundle", "engines/demo").value
            backend = self.declare_parameter("backend", "auto").value
            image_type = CompressedImage if self.declare_parameter("compressed", False).value else Image
            captioner = Captioner.load(bundle, backend)
            self._publisher = self.create_publisher(String, "captions", 10)
            self.describer = Describer(captioner, self._publish, self.get_logger().error)
            # The profile of sensors is compatible with publishers of every kind.
            subscribers = [
                message_filters.Subscriber(self, kind, topic, qos_profile=qos_profile_sensor_data)
                for kind, topic in ((image_type, "image"), (Detection2DArray, "detections"))
            ]
            self._matched = message_filters.ApproximateTimeSynchronizer(subscribers, _MATCHING, _MAX_SECONDS_APART)
            self._matched.registerCallback(self.describer.submit)
            self.get_logger().info(f"describing on {captioner.backend.name}")

        def _publish(self, text: str) -> None:
            if rclpy.ok():  # it may have been shut down while the image was described
                self._publisher.publish(String(data=text))

    rclpy.init()
    try:
        node = Captions()
        try:
            rclpy.spin(node)
        finally:
            node.describer.close()
            node.destroy_node()
    except (KeyboardInterrupt, ExternalShutdownException):  # Ctrl-C, or ROS is shut down
        pass
    finally:
        rclpy.try_shutdown()
